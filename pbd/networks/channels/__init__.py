"""Channels of a network: which layers share them, which can be removed, and networks without some of them."""

from pbd.networks.channels.groups import ChannelGroup, find_groups, reader_of, up_to_reader
from pbd.networks.channels.liveness import remove_unread, restricted
from pbd.networks.channels.placement import Placement, Placements, find_placements
from pbd.networks.channels.removal import masked, remove

__all__ = [
    "ChannelGroup",
    "Placement",
    "Placements",
    "find_groups",
    "find_placements",
    "masked",
    "reader_of",
    "remove",
    "remove_unread",
    "restricted",
    "up_to_reader",
]
