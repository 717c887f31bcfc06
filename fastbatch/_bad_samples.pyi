from typing import final

@final
class BadSamples: ...
