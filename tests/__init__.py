# Here, because jaxtyping imports the first part alone of tests.check_annotations.
from tests.annotations import check_annotations as check_annotations
