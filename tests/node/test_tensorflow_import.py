"""What `import_tensorflow` leaves for later is there when it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import gc, inspect, sys
from tfspark.tensorflow_import import import_tensorflow
tf = import_tensorflow()
assert tf is sys.modules["tensorflow"] and gc.isenabled()

@tf.function
def doubled(x):
    return x * 2 if x > 1 else x
assert doubled(tf.constant(3.0)) == 6.0, "AutoGraph looks at all modules"
inspect.getmodule(inspect.currentframe())
assert not {"matplotlib", "sklearn"} & set(sys.modules)

import keras
try:
    keras.visualization.no_such_gallery
except AttributeError as e:
    assert "no_such_gallery" in str(e)
assert callable(keras.visualization.plot_image_gallery)
from keras.wrappers import SKLearnClassifier
assert SKLearnClassifier.__module__ == "keras.src.wrappers.sklearn_wrapper"
assert {"matplotlib", "sklearn"} <= set(sys.modules)
print("done")
"""


def test_what_is_deferred_is_loaded_when_it_is_used(tmp_path: Path) -> None:
    # AutoGraph wants to read what it turns into a graph.
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr[-3000:]
