"""Channels of a network: which layers share them, which can be removed, and networks without some of them."""

from pbd.networks.channels.groups import ChannelGroup, find_groups, reader_of
from pbd.networks.channels.liveness import remove_unread, restricted
from pbd.networks.channels.removal import masked, remove

__all__ = ["ChannelGroup", "find_groups", "masked", "reader_of", "remove", "remove_unread", "restricted"]
