package model

import "banger/internal/errdefs"

// State is where a VM is in its life.
//
//	          create                 made and ready
//	(none) ──────────► creating ────────────────────────► running
//	                      │ made                  ready ▲    │ stop
//	                      ▼             start           │    ▼
//	                   stopped ──────────────► starting ┘ stopping
//	                      ▲ └──────────────────────┘         │
//	                      └──────────────────────────────────┘
//
// A VM that is made and started in one go is creating until it runs: before that
// nobody knows of it, so a crash undoes it. Any state may be deleted; deleting removes
// the row last, so a crash half way leaves a row in deleting that recovery finishes.
type State string

// The states.
const (
	StateCreating State = "creating"
	StateStarting State = "starting"
	StateRunning  State = "running"
	StateStopping State = "stopping"
	StateStopped  State = "stopped"
	StateDeleting State = "deleting"
)

// transitions is the table that code and tests both use.
var transitions = map[State][]State{
	StateCreating: {StateRunning, StateStopped, StateDeleting},
	StateStarting: {StateRunning, StateStopped, StateDeleting},
	StateRunning:  {StateStopping, StateStopped, StateDeleting},
	StateStopping: {StateStopped, StateDeleting},
	StateStopped:  {StateStarting, StateDeleting},
	StateDeleting: {},
}

// CanBecome reports whether a VM in state s may move to next.
func (s State) CanBecome(next State) bool {
	for _, t := range transitions[s] {
		if t == next {
			return true
		}
	}
	return false
}

// Live reports whether a VMM process may exist for a VM in this state.
func (s State) Live() bool {
	return s == StateStarting || s == StateRunning || s == StateStopping
}

// Transition checks a move and describes a refused one.
func (v *VM) Transition(next State) error {
	if !v.State.CanBecome(next) {
		return errdefs.Precondition("vm %q is %s and cannot become %s", v.Name, v.State, next)
	}
	v.State = next
	return nil
}
