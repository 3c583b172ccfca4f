"""The entry point: also ``python -m orchestrator``, where the console script is not on PATH."""

from orchestrator.system.stop_signals import end_by_interrupt


def main() -> None:
    """Run the command line. A Ctrl-C that nothing else handles ends the process by SIGINT."""
    try:
        # Here, since an interrupt may come while this is still being imported.
        from orchestrator.breakpoints.install import install
        from orchestrator.breakpoints.table import SUPERVISOR
        from orchestrator.cli import parser

        install(SUPERVISOR)
        parser.main()
    except KeyboardInterrupt:
        end_by_interrupt()


if __name__ == "__main__":
    main()
