"""The provider: the list of tools, and the setting that names the geolearn to run."""

from processing.core.ProcessingConfig import ProcessingConfig, Setting
from qgis.core import QgsProcessingProvider

from geolearn_provider.algorithms import ALGORITHMS
from geolearn_provider.command import SETTING


class Provider(QgsProcessingProvider):
    """geolearn's group in the Processing toolbox."""

    def load(self) -> bool:
        """Add the setting: Options, Processing, Providers, geolearn."""
        ProcessingConfig.settingIcons[self.name()] = self.icon()
        text = 'The geolearn program (empty: the one on PATH)'
        ProcessingConfig.addSetting(Setting(self.name(), SETTING, text, '', valuetype=Setting.FILE))
        ProcessingConfig.readSettings()
        self.refreshAlgorithms()
        return True

    def unload(self) -> None:
        """Remove the setting."""
        ProcessingConfig.removeSetting(SETTING)

    def loadAlgorithms(self) -> None:
        """Add the tools."""
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())

    def id(self) -> str:
        """Return the first part of the tools' names."""
        return 'geolearn'

    def name(self) -> str:
        """Return what the toolbox shows."""
        return 'geolearn'
