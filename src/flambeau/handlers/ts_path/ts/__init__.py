"""What handlers of TorchServe import, in Flambeau's own words. On the path of a handler's worker only."""

from .version import __version__ as __version__
