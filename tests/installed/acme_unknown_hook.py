"""A hook that answers an event which does not exist."""

from safe_framework.hooks import implementation


@implementation
def safe_trainig_step(step):
    """Its name is misspelt."""
    raise AssertionError("never called")
