# What sge-up and sge-down agree on beyond common.sh: a cell, a network, nodes and state of their
# own, so that the Grid Engine can run beside the Slurm. Sourced by both; makes nothing.

TESTBED=${SGE_TESTBED:-/var/lib/tb-sge}
NETWORK=${SGE_NETWORK:-198.18.78}
BRIDGE=tbsge0
MARK='# tb-sge'
LOGIN=sgelogin # of a host name space of its own: Grid Engine takes no name that means 127.0.0.1
# Ports of its own too: where the packages' services are started, they have the usual ones.
export SGE_ROOT=/var/lib/gridengine SGE_CELL=testbed SGE_QMASTER_PORT=6544 SGE_EXECD_PORT=6545
CELL=$SGE_ROOT/$SGE_CELL

# login COMMAND...: as on the login node, under whose name qmaster knows its clients.
login() { nsenter --uts="/proc/$(cat "$TESTBED/run/login.pid")/ns/uts" "$@"; }

# In front of a daemon: nothing in its environment, which jobs inherit, but what leads to the cell.
PRISTINE=(env -i "PATH=$PATH" "SGE_ROOT=$SGE_ROOT" "SGE_CELL=$SGE_CELL" SGE_ND=1
    "SGE_QMASTER_PORT=$SGE_QMASTER_PORT" "SGE_EXECD_PORT=$SGE_EXECD_PORT")
