"""The plugin: adds the provider to the Processing toolbox."""

from qgis.core import QgsApplication

from geolearn_provider.provider import Provider


class Plugin:
    """Adds geolearn's tools when it is switched on, and removes them when it is switched off."""

    def __init__(self) -> None:
        self._provider: Provider | None = None

    def initProcessing(self) -> None:  # QGIS calls this without windows, and initGui with them
        """Add the provider."""
        self._provider = Provider()
        QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self) -> None:
        """Add the provider."""
        self.initProcessing()

    def unload(self) -> None:
        """Remove the provider."""
        if self._provider is not None:
            QgsApplication.processingRegistry().removeProvider(self._provider)
            self._provider = None
