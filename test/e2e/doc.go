// Package e2e holds the tests that drive the three programs as a user would, with
// real virtual machines. They are built with the tag e2e and need two variables:
//
//	BANGER_E2E_BIN     directory of banger, bangerd and banger-agent
//	BANGER_TEST_CACHE  directory that lives on between runs: the state directory
//	                   in it keeps the kernel and the image
//
// The tests run one after another, on one daemon. Those that only run commands
// share one VM; those that break something make their own. Every VM is called
// e2e-something. What a run that crashed left behind is removed by the next one,
// and a run ends by proving that nothing of it is left.
package e2e
