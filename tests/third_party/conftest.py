"""Makes the stand-ins importable; tests below use their public names only."""

import third_party  # noqa: F401  puts third_party/ on the search path
