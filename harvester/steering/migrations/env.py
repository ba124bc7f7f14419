"""Runs the migrations on the connection that :mod:`harvester.steering.database` hands over."""

from alembic import context

from harvester.steering.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
