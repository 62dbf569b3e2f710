"""Every error that geolearn raises on purpose; each is also the builtin that fits.

GeoLearnError
    BandError            bands or wavelengths that do not fit together        (ValueError)
    ChipFolderError      an exported training folder that cannot be used      (ValueError)
    RasterError          a raster that cannot be read, matched or written     (OSError)
    FileWriteError       a file that cannot be written                        (OSError)
    BackboneError        a network that cannot serve as a backbone            (ValueError)
    WeightsError         weights that cannot be had or do not fit the network (ValueError)
    BundleError          a .dlpk that is broken, hostile or too new           (ValueError)
    UnknownNameError     a name that no registry holds                        (ValueError)
    NotTrainedError      a result asked of a model before `fit`               (RuntimeError)
    TrainingError        a training that cannot go on                         (RuntimeError)
    CheckpointError      a checkpoint that cannot be written, read or resumed (OSError)
    ArgumentError        an argument of a wrong type, or of a wrong name      (TypeError, ValueError)
    ArcGISNameError      a name of arcgis.learn that geolearn has not         (ImportError)
    MissingExtraError    an optional library that is not installed            (ImportError)
"""

import difflib
from collections.abc import Iterable


class GeoLearnError(Exception):
    """Root of all errors that geolearn raises on purpose."""


class BandError(GeoLearnError, ValueError):
    """Bands or wavelengths do not fit together."""


class ChipFolderError(GeoLearnError, ValueError):
    """An exported training folder cannot be used."""


class RasterError(GeoLearnError, OSError):
    """A raster cannot be read, matched or written."""


class FileWriteError(GeoLearnError, OSError):
    """A file cannot be written: a bundle, a report, a vector layer, a cache."""


class BackboneError(GeoLearnError, ValueError):
    """A network cannot serve as a backbone."""


class WeightsError(GeoLearnError, ValueError):
    """Weights cannot be had, or do not fit the network."""


class BundleError(GeoLearnError, ValueError):
    """A .dlpk is broken, hostile or written by a newer geolearn."""


class ExportError(GeoLearnError, RuntimeError):
    """A network cannot be written as a graph, or the graph computes something else."""


class NotTrainedError(GeoLearnError, RuntimeError):
    """A result was asked of a model that has not been trained."""


class TrainingError(GeoLearnError, RuntimeError):
    """A training cannot go on: a non-finite loss, or memory that holds not even one chip."""


class CheckpointError(GeoLearnError, OSError):
    """A checkpoint cannot be written, read, or resumed by this run."""


class MissingExtraError(GeoLearnError, ImportError):
    """An optional library is needed and not installed; the message holds the install line."""


class UnknownNameError(GeoLearnError, ValueError):
    """A name is not in a registry.

    Args:
        kind: What the name should have been, such as ``'backbone'``.
        name: The name that was given.
        known: The names that exist; the nearest are suggested.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        options = sorted(known)
        spelt = {option.lower(): option for option in options}
        near = difflib.get_close_matches(name.lower(), spelt, n=3, cutoff=0.5)
        if near:
            hint = 'did you mean ' + ' or '.join(repr(spelt[n]) for n in near) + '?'
        else:
            hint = 'known: ' + ', '.join(options[:20]) + (', ...' if len(options) > 20 else '')
        super().__init__(f'unknown {kind} {name!r}; {hint}')


class ConfigError(GeoLearnError, ValueError):
    """A configuration file cannot be read, or holds what the command does not take."""


class ArgumentError(GeoLearnError, TypeError, ValueError):
    """An argument is of another type than a call takes, or the call takes no argument of that name."""


class ArcGISNameError(GeoLearnError, ImportError):
    """A name of arcgis.learn is imported that geolearn has not; the message says what to use instead."""
