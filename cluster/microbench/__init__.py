"""Measures one device, and the links of a group: lookups, dense layers, copies and collectives."""
