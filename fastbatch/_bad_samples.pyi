from typing import Any, final

__pyx_capi__: dict[str, Any]  # for cimport

@final
class BadSamples: ...
