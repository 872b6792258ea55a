"""Routes of gateways: the link, nodes, and declared losses."""
