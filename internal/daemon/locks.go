package daemon

// Lock order. Take in this order, release in reverse; docs/locking.md says it at
// length, and builds with the tag lockcheck verify it at run time, but for the
// leaves (package lockrank).
//
//	rank  lock                     kept by     guards                          over I/O?
//	10    vmLocks[id]              vm          one VM's lifecycle verbs        yes, waits end with a context
//	20    workspaceLocks[id]       workspace   one VM's imports and exports    yes; never together with vmLocks
//	25    hostUp                   hostnet     what VMs share on the host      yes, waits end with a context
//	26    hostBatch                hostnet     making warm taps                yes
//	27    hostRules                hostnet     the firewall with its VMs       yes, waits end with a context
//	30    createVMMu               vm          setting a name aside            no
//	30    imageOpsMu               imagemgr    publishing an image or kernel   no
//	40    leaf mutexes             their type  one map each                    no
//	50    the store's transaction  store       the database                    no
//
// Equal rank: never both at once. Reads (list, show, doctor) take ranks 40 and 50
// only, so they never wait for a slow create.
