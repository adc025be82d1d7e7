"""Decides where every embedding table of a recommendation model lives."""
