"""Download of saved models from the Hugging Face Hub, to its client's own cache."""

import re
from pathlib import Path

from segret_jax import __version__
from segret_jax.errors import InputError, shorten

SCHEME = "hf://"
FORM = "hf://OWNER/NAME or hf://OWNER/NAME@REVISION"


def download(source: str, files: tuple[str, ...]) -> Path:
    """Download some files of a repository, unless they are in the cache; return their folder.

    `HF_ENDPOINT` names another server, `HF_HUB_OFFLINE=1` takes what the cache has.

    Args:
        source: hf://OWNER/NAME or hf://OWNER/NAME@REVISION (branch, tag or commit).
        files: Names in the repository; missing ones are not reported.

    Raises:
        InputError: The package huggingface_hub is missing, or the download fails.
    """
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@(\w[\w.-]*(?:/\w[\w.-]*)*))?", source)
    if found is None:
        raise InputError(f"{shorten(source)}: write {FORM}")
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise InputError(
            f"{source} needs the package huggingface_hub: pip install huggingface_hub"
        ) from None
    repository, revision = found[1], found[2]
    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(files),
            library_name="segret_jax", library_version=__version__,
        )  # fmt: skip
    except errors.GatedRepoError as error:
        remedy = "ask for access on its page, then log in (hf auth login)"
        raise InputError(f"{source} is open only to some: {remedy}") from error
    except errors.RepositoryNotFoundError as error:
        remedy = "check the name; if it is private, log in (hf auth login)"
        raise InputError(f"{source}: there is no such repository; {remedy}") from error
    except errors.RevisionNotFoundError as error:
        message = f"the repository has no revision {revision!r}; give a branch, tag or commit"
        raise InputError(f"{source}: {message}") from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{source} is not in the cache, and the Hub cannot be reached: check the network "
            "(HF_ENDPOINT, HF_HUB_OFFLINE), or download it elsewhere and give its folder"
        ) from error
    except Exception as error:  # of the client, of its HTTP library, of the disk
        reason = shorten((str(error).strip().splitlines() or [type(error).__name__])[0])
        raise InputError(f"{source} could not be downloaded ({reason}): try again") from error
    return Path(folder)
