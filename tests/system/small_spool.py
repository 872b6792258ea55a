"""A gateway process like `tollway gateway`, but with a spool so small that a test can fill its disk. Run as a script."""

import argparse
import os
import sys
from pathlib import Path

from tollway.gateway.open_inference.bounds import GrpcBounds
from tollway.gateway.relay import RelayBounds
from tollway.link.spool import SpoolOptions
from tollway.serve.data_directory import make_gateway_node, read_secrets
from tollway.serve.gateway import GatewayOptions, run_gateway
from tollway.serve.sockets import open_listener
from tollway.serve.telemetry_export import TelemetryOptions

SEGMENT_BYTES, SLOTS = 64 * 1024, 64


def main(telemetry: TelemetryOptions | None = None) -> int:
    """Run until SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser()
    for name in ("--data-dir", "--listen", "--internal", "--control-link-url"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    secrets = read_secrets(Path(options.data_dir), os.environ)
    return run_gateway(
        GatewayOptions(
            directory=Path(options.data_dir) / "gateway",
            control_link_url=options.control_link_url,
            listener=open_listener(options.listen, option="--listen"),
            internal=open_listener(options.internal, option="--internal"),
            peppers=[secrets.peppers[version] for version in sorted(secrets.peppers, reverse=True)],
            vault_key=secrets.vault_key,
            node=make_gateway_node(Path(options.data_dir), os.environ),
            grpc=GrpcBounds(listen="127.0.0.1:0"),
            relay=RelayBounds(cache_events=True),
            telemetry=telemetry,
            spool=SpoolOptions(segment_bytes=SEGMENT_BYTES, slots_max=SLOTS),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
