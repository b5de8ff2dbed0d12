"""Process settings that only count before torch and Numba load; imported first, by the package.

A waiting OpenMP thread must sleep rather than spin: torch's pool and Numba's share the cores,
and a spinning pool made a mixed step five to ten times slower beside any other busy process.
Numba's `workqueue` layer brings no second OpenMP runtime. Settings of the user's own win.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")
