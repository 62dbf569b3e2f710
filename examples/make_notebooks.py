"""Execute the examples on generated data, and write each as a notebook with its figures.

pip install '.[docs]'
python examples/make_notebooks.py
"""

import os
import tempfile
from pathlib import Path

import jupytext
from nbclient import NotebookClient

HERE = Path(__file__).parent
EXAMPLES = ('landcover', 'objects', 'embeddings')


def main() -> None:
    """Write all notebooks."""
    os.environ['GEOLEARN_PROGRESS'] = 'off'
    for name in EXAMPLES:
        notebook = jupytext.read(HERE / f'{name}.py', fmt='py:percent')
        with tempfile.TemporaryDirectory() as folder:  # what it writes is not kept
            place = {'metadata': {'path': folder}}
            NotebookClient(notebook, timeout=1800, kernel_name='python3', resources=place).execute()
        for index, cell in enumerate(notebook.cells):
            cell['id'] = f'cell-{index}'  # else every run changes every line
            cell.metadata.pop('execution', None)
        notebook.metadata = {'language_info': {'name': 'python'}, 'kernelspec': KERNEL}
        jupytext.write(notebook, HERE / f'{name}.ipynb', fmt='ipynb')
        print(f'wrote {name}.ipynb')


KERNEL = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}


if __name__ == '__main__':
    main()
