from typing import final

@final
class Seeder:
    in_place: bool
    def __init__(self, *args: object, **kwargs: object) -> None: ...  # it takes none
    def expect(self, seeds: list[int]) -> None: ...
    def seed(self, seed: int) -> None: ...
