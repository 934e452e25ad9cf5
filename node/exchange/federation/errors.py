"""Errors of federated search, split by who must act."""


class InvalidQuestion(ValueError):
    """A question is damaged, too large, or asks for what there is not; the sentence says what."""


class InvalidAnswer(ValueError):
    """A hospital answered with something that cannot be an answer to what it was asked."""


class CatalogueUnusable(Exception):
    """The catalogue's file cannot be used; the text says what to do."""
