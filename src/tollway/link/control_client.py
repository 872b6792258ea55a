"""The HTTP client with which one part of a gateway calls control over the link: one connection, authenticated by the key of the node."""

import httpx2

from tollway.link.authorities import trusted_authorities


def new_control_client(control_link_url: str, node_key: str, request_seconds_max: float) -> httpx2.AsyncClient:
    """Return a client for JSON requests to `control_link_url`, which the caller closes.

    `request_seconds_max`: deadline of each step of a request (connect, write, read, wait for the connection). Proxies of the environment
    are not used, because the link is a private network.
    """
    return httpx2.AsyncClient(
        base_url=control_link_url,
        headers={"authorization": f"Bearer {node_key}", "content-type": "application/json"},
        timeout=httpx2.Timeout(request_seconds_max),
        limits=httpx2.Limits(max_connections=1),
        trust_env=False,
        verify=trusted_authorities(),
    )
