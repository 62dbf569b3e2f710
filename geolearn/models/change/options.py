"""What a change detector was told besides its backbone, kept in its spec."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from geolearn.errors import BundleError
from geolearn.models.change.siamese import Fusion, check_fusion
from geolearn.models.pixels.options import PixelOptions


@dataclass(frozen=True)
class ChangeOptions:
    """Fusion, decoder and loss of a change detector.

    Args:
        fusion: How the maps of the two dates become one.
        pixels: What it shares with every model of pixels.

    Raises:
        ValueError: If there is no such fusion.
    """

    fusion: Fusion
    pixels: PixelOptions

    def __post_init__(self) -> None:
        check_fusion(self.fusion)

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain JSON."""
        return self.pixels.to_json() | {'fusion': self.fusion}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], *, decoder: str) -> 'ChangeOptions':
        """Read the options that a spec carries.

        Args:
            row: The spec's options.
            decoder: Where the options name none.

        Raises:
            BundleError: If they are not what `to_json` returns.
        """
        try:
            return cls(row.get('fusion', 'difference'), PixelOptions.from_json(row, decoder=decoder))
        except (TypeError, ValueError) as error:
            raise BundleError(f'the manifest is broken: options {dict(row)}: {error}') from error
