"""Joint Distribution Matching for one-step image generators."""

from jdmctl._compat import mend_on_import

__version__ = "0.1.0.dev0"

mend_on_import()
