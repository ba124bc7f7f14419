"""The login-node side of the on-disk contract: orders down, events up, lease, ledger."""
