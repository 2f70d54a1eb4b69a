import csv
import dataclasses
import re

import numpy as np
import pytest

from hapre_jax import predictions
from hapre_jax.errors import UserError
