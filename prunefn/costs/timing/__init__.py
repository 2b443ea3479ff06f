"""Latency: time the ops of a program once, and predict the latency of any mask from them."""

from .clock import Call as Call
from .clock import Clock as Clock
from .measure import latency_table as latency_table
from .table import LatencyTable as LatencyTable
from .table import latency as latency
