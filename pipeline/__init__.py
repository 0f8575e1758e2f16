"""Cinevox: from patient volumes to metric reports, a volume played as a film of ordered slices."""

import atexit
import sys

__version__ = "0.1.0"


@atexit.register
def _keep_type_tables() -> None:
    """Keep the type tables of SWIG's modules (ITK, which MONAI loads where it is installed) beyond the end.

    ITK 5.4's destructor of its table dereferences a null pointer where Python takes modules down in another order.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("swig_runtime_data"):
            import ctypes

            for table in vars(module).values():
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(table))
