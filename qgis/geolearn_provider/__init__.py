"""QGIS plugin: geolearn's tools in the Processing toolbox."""

from typing import Any


def classFactory(iface: Any) -> Any:  # the name that QGIS calls
    """Return the plugin; QGIS calls this, with None where it has no windows, as in qgis_process."""
    from geolearn_provider.plugin import Plugin

    return Plugin()
