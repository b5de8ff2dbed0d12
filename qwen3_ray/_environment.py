"""Process settings that only count before torch loads; imported first, by the package.

A waiting OpenMP thread must sleep rather than spin: torch's pool shares the cores with our own
kernels' threads, and a spinning pool made a mixed step five to ten times slower beside any other
busy process. A setting of the user's own wins.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
