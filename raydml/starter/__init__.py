"""A look at a person's data in; a spec to start from, with a reason beside each number, out."""

from raydml.starter.document import write_spec
from raydml.starter.look import data_of

__all__ = ["data_of", "write_spec"]
