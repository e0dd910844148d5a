"""What a run holds, in the formats of other tools; ``steca export`` in Python.

>>> export("runs/mine", Path("out"), "messages", kind="expert")
"""

from steca_gym.interop.exports.formats import FORMATS, export
from steca_gym.interop.exports.rows import Row, RunData

__all__ = ["FORMATS", "Row", "RunData", "export"]
