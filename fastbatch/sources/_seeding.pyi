from typing import Any, final

@final
class Seeder:
    def __init__(self, *args: object, **kwargs: object) -> None: ...  # it takes none
    def expect(self, seeds: list[int]) -> None: ...
    def seed(self, seed: int) -> None: ...
    @property
    def by_words(self) -> set[str]: ...

@final
class Words:
    def __init__(self, *args: object, **kwargs: object) -> None: ...  # it takes none

@final
class PythonGenerator:
    def __init__(self, words: Words) -> None: ...

@final
class NumPyGenerator:
    def __init__(self, words: Words) -> None: ...

@final
class TorchGenerator:
    def __init__(self, generator: Any, words: Words) -> None: ...
