"""How values show themselves: numbers with units, calls as text, tables in HTML."""
