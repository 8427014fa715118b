"""A bug that is put into the library on purpose, and the test that must catch it.

A mutant is one or more substitutions in one source file; each text must occur there exactly once, so that a mutant
cannot become idle when the code changes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """A bug: the file or the folder of the package, what is replaced by what, and the test that must fail."""

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    caught_by: str

    @property
    def test(self) -> str:
        return self.caught_by.split(" -k ")[0]

    @property
    def selection(self) -> list[str]:
        """Arguments for pytest."""
        test, _, expression = self.caught_by.partition(" -k ")
        return [f"tests/{test}", *(["-k", expression] if expression else [])]

    def sources(self, package: Path) -> dict[Path, str]:
        """The files that it changes, with their new text.

        Raises:
            ValueError: a text is not there, or more than once.
        """
        place, new = package / self.file, {}
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            new[path] = path.read_text(encoding="utf-8")
        for old, instead in self.changes:
            holders = [path for path, text in new.items() for _ in range(text.count(old))]
            if len(holders) != 1:
                raise ValueError(f"{self.file} holds {len(holders)} times, and not once: {old!r}")
            new[holders[0]] = new[holders[0]].replace(old, instead)
        return new


def mutant(name: str, file: str, old: str, new: str, caught_by: str) -> Mutant:
    return Mutant(name, file, ((old, new),), caught_by)
