"""A stub that `tfspark.compat.install` sends to executors; importing it replaces it with tfspark's modules."""

import tfspark.compat

IS_TFSPARKS = True

tfspark.compat.install()
