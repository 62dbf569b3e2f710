"""What a pixel model was told besides its backbone, kept in its spec."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from geolearn.errors import BundleError
from geolearn.losses import PixelLossOptions, ValueLossOptions


@dataclass(frozen=True)
class PixelOptions:
    """Decoder and loss of a pixel model.

    Args:
        decoder: Name of the decoder.
        decoder_options: Passed to it.
        loss: What classification minimises.
        value_loss: What regression minimises.
        auxiliary_head: Whether a small head on a coarse map learns beside the decoder.

    Raises:
        ValueError: If a loss is no options of one.
    """

    decoder: str
    decoder_options: Mapping[str, Any] = field(default_factory=dict)
    loss: PixelLossOptions = field(default_factory=PixelLossOptions)
    value_loss: ValueLossOptions = field(default_factory=ValueLossOptions)
    auxiliary_head: bool = False

    def __post_init__(self) -> None:
        for given, kind in ((self.loss, PixelLossOptions), (self.value_loss, ValueLossOptions)):
            if not isinstance(given, kind):
                raise ValueError(f'loss must be {kind.__name__}, such as {kind()}, got {given!r}')

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain JSON."""
        return asdict(self) | {'decoder_options': dict(self.decoder_options)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], *, decoder: str) -> 'PixelOptions':
        """Read the options that a spec carries; bundles from before there was a choice carry none.

        Args:
            row: The spec's options.
            decoder: That of the class of model, where the options name none.

        Raises:
            BundleError: If they are not what `to_json` returns.
        """
        try:
            return cls(
                decoder=row.get('decoder', decoder),
                decoder_options=dict(row.get('decoder_options', {})),
                loss=PixelLossOptions(**row.get('loss', {})),
                value_loss=ValueLossOptions(**row.get('value_loss', {})),
                auxiliary_head=bool(row.get('auxiliary_head', False)),
            )
        except (TypeError, ValueError) as error:
            raise BundleError(f'the manifest is broken: options {dict(row)}: {error}') from error
