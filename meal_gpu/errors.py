"""Every error meant for a user. Each message names what was given, what was expected and the fix.

MealGpuError
├── InputError        an array or argument of the wrong shape, dtype or range (also a ValueError)
├── ConfigError       an unknown key or an impossible setting             (also a ValueError)
├── DataError         an image, label or list file that cannot be used    (also a ValueError)
├── RunError          a run folder that cannot be written or resumed
└── UnavailableError  a package, device, download or weight file that is not there
"""


class MealGpuError(Exception):
    """Base of all errors this package raises on purpose."""


class InputError(MealGpuError, ValueError):
    """An array or argument has the wrong shape, dtype or range."""


class ConfigError(MealGpuError, ValueError):
    """A configuration has an unknown key or an impossible setting."""


class DataError(MealGpuError, ValueError):
    """An image, label or list file is missing, damaged or inconsistent."""


class RunError(MealGpuError, RuntimeError):
    """A run folder cannot be written, read or resumed."""


class UnavailableError(MealGpuError, RuntimeError):
    """A package, device, download or weight file that was asked for is not there."""
