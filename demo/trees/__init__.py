"""Upstream trees: for each of the six formats a small one in its true shape, with a few broken inputs of each kind.

A module has `write(folder, deck)`, which writes the tree, and `PLANTED`, what shardweave has to find in it, counted by hand.
"""

from demo.trees import coco, grand, laion, llava, mmc4, visual_genome
from demo.trees.tree import Planted, Tree

TREES = {"coco": coco, "visual_genome": visual_genome, "mmc4": mmc4, "laion": laion, "llava": llava, "grand": grand}

__all__ = ["TREES", "Planted", "Tree"]
