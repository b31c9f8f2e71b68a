//! Client verbs that speak the DEA protocol on the bus themselves.
