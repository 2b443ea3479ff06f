"""Latency: the ops of a program timed once, and the time of any mask predicted from them."""

from .clock import Call as Call
from .clock import Clock as Clock
from .measure import latency_table as latency_table
from .table import LatencyTable as LatencyTable
from .table import latency as latency
