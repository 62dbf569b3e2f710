"""Colours of what figures say besides classes: told apart by colour-blind people, and in print without colour."""

BLUE, ORANGE, GREEN, VERMILION, GREY = '#0072b2', '#e69f00', '#009e73', '#d55e00', '#8c8c8c'
"""From the palette of Okabe and Ito (2008), 'Color Universal Design'."""

RIGHT, WRONG, NOT_LABELLED = '#a6cee3', '#b2340a', '#ffffff'
"""Of the pixels of an error map; their lightness differs too."""

PART_COLORS = {'train': BLUE, 'valid': ORANGE, 'test': GREEN, 'dropped': GREY}
"""Of the parts of a split."""

SURE = 'magma'
"""Colour map of what is small nearly everywhere, such as a loss."""

AMOUNT, DIFFERENCE, SHARE = 'viridis', 'PuOr', 'Blues'
"""Colour maps of values, of differences around 0, and of shares."""
