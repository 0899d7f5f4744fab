"""The page and the HTTP interface of `segret serve`: one model, one queue, photographs in."""
