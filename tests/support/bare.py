"""A machine with bare ``focal``: what only a site or a study has cannot be imported."""

BARE = """
import sys
from importlib.machinery import PathFinder

from focal.extras import EXTRAS

class Bare(PathFinder):
    absent = {module for modules in EXTRAS.values() for module in modules}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in cls.absent else super().find_spec(name, path, target)

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""
