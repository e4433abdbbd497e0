"""The only assertion helper: shapes at the doors, with the values in the message."""

from __future__ import annotations

from torch import Tensor


def expect(tensor: Tensor, letters: str, /, **sizes: int) -> Tensor:
    """Asserts that `tensor` has the axes named in `letters`, and returns it.

    Each word is a letter with a known size (`B`), a letter with an offset (`H+1`), a number, or a letter not in `sizes`, which
    matches anything. Example: `expect(obs, "B H+1 O", B=256, H=5)`.

    Raises:
        ValueError: naming the expected and the actual shape.
    """
    words = letters.split()
    wanted = [_size(word, sizes) for word in words]
    if len(words) != tensor.dim() or any(w is not None and w != s for w, s in zip(wanted, tensor.shape, strict=True)):
        known = ", ".join(f"{k}={v}" for k, v in sizes.items())
        raise ValueError(f"expected shape [{', '.join(words)}] with {known}, got {list(tensor.shape)}")
    return tensor


def _size(word: str, sizes: dict[str, int]) -> int | None:
    letter, _, offset = word.partition("+")
    if letter.isdigit():
        return int(letter)
    if letter not in sizes:
        return None
    return sizes[letter] + int(offset or 0)
