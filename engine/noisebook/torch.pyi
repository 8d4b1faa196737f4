# `noisebook.torch` for editors and type checkers; __init__.py hands out the module itself
from noisebook.datasets.torch import Cost as Cost
from noisebook.datasets.torch import Transform as Transform
