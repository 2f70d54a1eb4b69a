"""Key region selection on Ped-Pneumonia (Kermany et al., 2018): three classes.

Command:  python -m hapre_jax.train --config configs/ped_pneumonia.py --data.root DIR
          DIR holds chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}, or is its zip file.
Hardware: one CPU core, a quarter of an hour.
Expected result: docs/learning_the_key_area.md, "One recipe for all framings".
"""

import dataclasses
import pathlib

from hapre_jax import config, config_file


def get_config() -> config.Config:
    """The recipe for films, however they are framed."""
    films = config_file.load(str(pathlib.Path(__file__).with_name("films.py")))
    data = dataclasses.replace(films.data, name="ped_pneumonia")
    return dataclasses.replace(films, data=data)
