// Package mlog stands in for the logging module of the same name, which the
// module proxy does not serve. It has exactly what the Secrets Store CSI driver
// calls and logs through klog in klog's own text format.
package mlog

import (
	"context"
	"errors"

	"k8s.io/klog/v2"
)

// LogFormat names an output format.
type LogFormat string

// The formats that the driver can ask for. Only text is to be had here.
const (
	FormatText LogFormat = "text"
	FormatJSON LogFormat = "json"
)

// ValidateAndSetKlogLevelAndFormatGlobally refuses every format but text. The
// level has already been set by klog's own -v flag, from which the driver read it.
func ValidateAndSetKlogLevelAndFormatGlobally(_ context.Context, _ klog.Level, format LogFormat) error {
	if format != FormatText {
		return errors.New("only the text log format is available in this build")
	}
	return nil
}

// Setup returns the function to call before the program ends.
func Setup() func() { return klog.Flush }

// Error logs err under msg.
func Error(msg string, err error) { klog.ErrorSDepth(1, err, msg) }

// Fatal logs err and ends the process with status 255.
func Fatal(err error) { klog.FatalDepth(1, err) }
